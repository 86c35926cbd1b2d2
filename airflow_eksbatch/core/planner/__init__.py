"""World in, plan out: who runs where, what to launch, what to give back."""
