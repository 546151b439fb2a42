"""Output for people: the terminal, the page, figures and TensorBoard."""
