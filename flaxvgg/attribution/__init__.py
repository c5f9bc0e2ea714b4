"""Attribution to pixels: `attribute`; gradients, propagated relevance and perturbations."""
