"""What a rig checks on a board: `linux` for boards with an agent, `mcu` for microcontrollers."""
