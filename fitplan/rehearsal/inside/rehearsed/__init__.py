"""What runs inside a rehearsed process. It may be any Python that has PyTorch: nothing here imports fitplan."""
