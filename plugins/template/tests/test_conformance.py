from drivetrain_plugins.conformance.suite import BackendConformance


class TestAcme(BackendConformance):
    backend = "drivetrain_acme.backend:AcmeBackend"
