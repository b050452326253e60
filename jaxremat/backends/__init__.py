"""The devices that plans are made for, and what each platform's compiler does with a program."""
