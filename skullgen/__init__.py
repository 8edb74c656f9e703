"""skullgen: generated pairs (defective skull, its defect) for cranial implant design, in JAX."""

__version__ = "0.1.0"
