"""Everything that touches the sandbox: launch, mediation of calls, egress, DNS. Decides by the policy, never alone."""
