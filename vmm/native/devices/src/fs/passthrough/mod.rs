//! The host half of the fs device: folders of the host, passed through.
