"""What JAX is told before it starts: two devices that are both this CPU, one thread, and code that is
made fast rather than fast code."""

import os

FLAGS = (
    "--xla_force_host_platform_device_count=2",
    "--xla_cpu_multi_thread_eigen=false",
    "--xla_backend_optimization_level=0",
)
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
