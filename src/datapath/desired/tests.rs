//! Conflicts between Services, cluster IPs and NodePort addresses, small enough to read.
