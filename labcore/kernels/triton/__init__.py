"""GPU kernels in Triton, imported only where they run; tests run them in Triton's interpreter."""
