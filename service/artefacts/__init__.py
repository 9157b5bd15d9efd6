"""In workers only: artefacts opened, and their differentiable twins."""
