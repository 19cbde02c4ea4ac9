"""What a program is: graphs of typed SSA values, ops, their text, gradients and passes, and the loop IR."""
