"""Images in: loaders for folders and files, `ImageSet`, splits, and differentiable augmentation."""
