"""How it is computed: packed and bucketed passes, pooling kernels, fast paths, cores, memory, processes."""
