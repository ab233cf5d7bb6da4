"""Device backends that strato-vmm starts behind a vhost-user socket."""
