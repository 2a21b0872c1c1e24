"""PyTorch's CUDA caching allocator, in Python: how much memory a trace makes it reserve."""
