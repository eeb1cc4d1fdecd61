"""Terms of objectives and how they are weighted. Summed over features, averaged over the batch."""
