package trial

import (
	"bytes"
	"context"
	debugelf "debug/elf"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/worker"
	"github.com/kofarm/kofarm/worker/embedded"
)

func TestMain(m *testing.M) {
	embedded.Reexec()
	os.Exit(m.Run())
}

func TestProgram(t *testing.T) {
	for arch := range programs {
		data, err := elf(arch)
		if err != nil {
			t.Fatal(err)
		}
		f, err := debugelf.NewFile(bytes.NewReader(data))
		if err != nil {
			t.Fatalf("%s: %v", arch, err)
		}
		if len(f.Progs) != 1 || f.Progs[0].Filesz != uint64(len(data)) || f.Entry != f.Progs[0].Vaddr+120 {
			t.Errorf("%s: %+v", arch, f)
		}
		if arch != runtime.GOARCH {
			continue
		}
		file := filepath.Join(t.TempDir(), "trial")
		if err := os.WriteFile(file, data, 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), file).Output(); err != nil || string(out) != word {
			t.Errorf("%s: got %q, %v", arch, out, err)
		}
	}
	if _, err := image("mips"); !errors.Is(err, ErrArch) {
		t.Errorf("mips: %v", err)
	}
}

func TestEmbedded(t *testing.T) {
	r, err := embedded.Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := Run(t.Context(), r); err != nil {
		t.Error(err)
	}
}

// runner answers as it is told.
type runner struct {
	output string
	result worker.Result
}

func (r runner) Run(_ context.Context, task worker.Task) (worker.Result, error) {
	_, err := task.Output.Write([]byte(r.output))
	return r.result, err
}

func TestWhatIsWrong(t *testing.T) {
	tests := []struct {
		r    runner
		want string
	}{
		{runner{word, worker.Result{Ending: worker.Exited}}, ""},
		{runner{"", worker.Result{Ending: worker.Exited}}, `"" has arrived`},
		{runner{word, worker.Result{Ending: worker.Exited, ExitCode: 127}}, "status 127"},
		{runner{word, worker.Result{Ending: worker.OutOfMemory}}, "out of memory"},
	}
	for _, tt := range tests {
		err := Run(t.Context(), tt.r)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: got %v, want %q", tt.r, err, tt.want)
		}
	}
}
