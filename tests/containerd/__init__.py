"""Tests against real containerd releases and their own `ctr`."""
