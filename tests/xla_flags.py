"""XLA flags of the tests: unoptimised, because their small programs take longer to compile than to run."""

UNOPTIMISED = "--xla_backend_optimization_level=0"


def of_devices(count: int) -> str:
    """For a process with so many virtual devices."""
    return f"{UNOPTIMISED} --xla_force_host_platform_device_count={count}"
