from drivetrain_plugins.conformance.suite import BackendConformance


class TestOpencl(BackendConformance):
    backend = "drivetrain_opencl.backend:OpenclBackend"
