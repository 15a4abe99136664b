"""vlaa_jax: post-training vision-language models for reasoning, JAX and TPU first."""
