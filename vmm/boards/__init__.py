"""Boards: VmConfig to MachinePlan, without I/O."""
