"""Linear mixed models. So far the gaussian kernel that NLME's linearisations need."""
