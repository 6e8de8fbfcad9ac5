"""Many runs: what came of each."""
