"""Everything that touches the sandbox: launch, mediation of calls, egress and DNS. Decides by the policy, never alone."""
