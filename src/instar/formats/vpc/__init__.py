"""vpc: Virtual PC's and Hyper-V's VHD. See README.md in this folder."""
