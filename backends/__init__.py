"""How a program becomes code: scheduling of graphs into loops, and targets that turn loops into code."""
