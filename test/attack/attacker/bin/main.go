// Command attacker is the hostile program of the attack tests on its own.
package main

import "github.com/nucleus-runtime/nucleus/test/attack/attacker"

func main() { attacker.Main() }
