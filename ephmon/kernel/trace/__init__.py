"""Failed connect() calls as the kernel's tracing reports them."""
