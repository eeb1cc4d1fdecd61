"""The ablation of TINT: what its tables ask, how each figure is measured, and how tables are shown."""
