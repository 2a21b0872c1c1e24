"""Rehearsal: training programs run on a GPU that is not there, on the real CUDA libraries.

PyTorch's CUDA build, bitsandbytes, Triton, DeepSpeed and the callers of NCCL talk to a GPU through a few hundred C
functions. Here these are stood in for (``stand_ins/``, one file a library): memory is counted, kernels do nothing.
Everything above is the real thing: the caching allocator, autograd, the choice of kernels, the scratch memory that
operators allocate in host code, the program's own script. Memory hardly depends on values; where it does (masks,
lengths, routing), integers and booleans keep their true values (``inside/values.py``).

    build    the stand-ins, compiled for the PyTorch at hand
    gpu      what a program is told of the GPU
    launch   the environment in which a program is rehearsed
    inside/  what runs in the rehearsed process: true values, and who holds the memory
    run      runs a command, hears what its processes tell, and ends them
    report   what came of it
"""

DEFAULT_GPU = "h100"
"""Where nobody names one."""
