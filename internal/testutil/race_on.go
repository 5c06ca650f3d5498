//go:build race

package testutil

const raceSlowdown = 10
