"""Collection of rollouts: prompts are batched, sampled from the policy and scored by the task."""
