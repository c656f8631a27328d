"""A school's jobs: attendance that is marked and reported, and academic records; each job does its work once."""
