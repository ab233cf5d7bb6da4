"""Engines: what runs a MachinePlan."""
