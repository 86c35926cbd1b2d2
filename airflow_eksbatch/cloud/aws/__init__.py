"""What `cloud/ec2.py` is made of: AWS as EKS nodes need it."""
