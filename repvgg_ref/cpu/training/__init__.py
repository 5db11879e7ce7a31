"""The three-branch block in training mode, by as few passes over pixels as it takes."""
