"""What runs a program: memory, executables, reports and the page that shows all stages."""
