"""Networks: variational autoencoder halves, codebook, prior over codes, weight averages."""
