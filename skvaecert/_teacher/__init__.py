"""GMMTeacher: a Gaussian mixture on principal components, and its search."""
