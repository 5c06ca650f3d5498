module github.com/nucleus-runtime/nucleus/sdk

go 1.26
