"""A robot arm of one's own; importing the package registers it with Gymnasium."""

import gymnasium

gymnasium.register("MyArm-v0", "my_arm.reaching:ReachingArm")
