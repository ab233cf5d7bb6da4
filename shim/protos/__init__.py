"""Messages of containerd's protocols; see README.md. Import the generated modules by name."""
