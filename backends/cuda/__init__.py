"""The CUDA target: loop programs as readable CUDA C++, its compilation by nvcc or NVRTC, and its execution
by g++ under an emulation header where there is no GPU."""
