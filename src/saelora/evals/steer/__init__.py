"""What steering is measured with: texts in sets that are apart, latents chosen on them, interventions, likelihoods."""
