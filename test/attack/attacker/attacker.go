// Package attacker is what hostile code inside a sandbox would be: a program that tries one class of attack after the other. It reports only what
// it achieved, a line "WON attack detail" for each success, and never what an
// error said; the tests read those lines, and look at canaries outside.
package attacker

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// attacks are the sub-commands by name.
var attacks = map[string]func(args []string){
	"exe":        overwriteExecutables,
	"proc1":      reachInit,
	"mounts":     changeMounts,
	"namespaces": makeNamespaces,
	"gadgets":    openGadgets,
	"leaks":      readLeaks,
	"devices":    makeDevices,
	"opendev":    openDevices,
	"keys":       useKeyrings,
	"calls":      probeDangerous,
	"table":      probeTable,
	"foreign":    useForeignABIs,
	"terminal":   injectInput,
	"identity":   gainIdentity,
	"setuid":     reportIdentity,
	"setidfiles": makeSetIDFiles,
	"signals":    signalOthers,
	"abstract":   connectAbstract,
	"socket":     connectPath,
	"ipc":        readIPC,
	"landlock":   evadeLandlock,
	"sweep":      sweepFiles,
	"names":      findNames,
	"env":        readEnvironments,
	"descriptor": walkDescriptors,
	"see":        waitFor,
	"fill":       fillFiles,
	"memory":     eatMemory,
	"forks":      forkBomb,
	"threads":    threadBomb,
	"fds":        descriptorBomb,
	"daemon":     outlive,
	"flood":      floodOutput,
	"kernelobj":  kernelObjectBombs,
	"core":       dumpCore,
	"posture":    printPosture,
	"sleep":      sleepForever,
}

// Main runs the attack that the arguments name.
func Main() {
	if len(os.Args) < 2 || attacks[os.Args[1]] == nil {
		var names []string
		for n := range attacks {
			names = append(names, n)
		}
		slices.Sort(names)
		fmt.Fprintln(os.Stderr, "attacker: one of:", strings.Join(names, " "))
		os.Exit(2)
	}
	fmt.Println("READY", os.Args[1])
	attacks[os.Args[1]](os.Args[2:])
	fmt.Println("DONE", os.Args[1])
}

// mustBeInside ends the program unless it runs in a sandbox: some attacks would
// hit the whole machine where there is nothing to hold them.
func mustBeInside() {
	if !inSandbox() {
		fmt.Fprintln(os.Stderr, "attacker: this attack is for the inside of a sandbox only")
		os.Exit(2)
	}
}

func inSandbox() bool { return os.Getenv("container") == "nucleus" }

// won reports a success.
func won(attack, format string, args ...any) {
	fmt.Printf("WON %s %s\n", attack, strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " "))
}

// wonIf reports a success where there was no error.
func wonIf(err error, attack, format string, args ...any) {
	if err == nil {
		won(attack, format, args...)
	}
}
