"""The teacher: a mixture of Gaussians on principal components."""
