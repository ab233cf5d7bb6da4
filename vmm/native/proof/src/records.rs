//! Saved state that is not what was saved.
