package wire

import (
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

var services = map[manifest.Service]pluginv1.Service{
	manifest.Network: pluginv1.Service_SERVICE_NETWORK,
	manifest.Runtime: pluginv1.Service_SERVICE_RUNTIME,
	manifest.Secrets: pluginv1.Service_SERVICE_SECRETS,
	manifest.Hooks:   pluginv1.Service_SERVICE_HOOKS,
}

// Service as it travels; "" is none.
func Service(s manifest.Service) pluginv1.Service { return services[s] }

// FromService is the inverse of Service; "" for one of a newer contract.
func FromService(in pluginv1.Service) manifest.Service {
	for s, p := range services {
		if p == in {
			return s
		}
	}
	return ""
}

// Versions as they travel.
func Versions(in []manifest.Version) []*pluginv1.ServiceVersion {
	out := make([]*pluginv1.ServiceVersion, 0, len(in))
	for _, v := range in {
		out = append(out, &pluginv1.ServiceVersion{Service: services[v.Service], Version: v.Version})
	}
	return out
}

// FromVersions is the inverse of Versions, without what this side does not know.
func FromVersions(in []*pluginv1.ServiceVersion) []manifest.Version {
	var out []manifest.Version
	for _, v := range in {
		if s := FromService(v.GetService()); s != "" {
			out = append(out, manifest.Version{Service: s, Version: v.GetVersion()})
		}
	}
	return out
}

var lifetimes = map[manifest.Lifetime]pluginv1.Lifetime{
	manifest.OneShot:  pluginv1.Lifetime_LIFETIME_ONE_SHOT,
	manifest.WarmOK:   pluginv1.Lifetime_LIFETIME_WARM_OK,
	manifest.Resident: pluginv1.Lifetime_LIFETIME_RESIDENT,
}

// Info as it travels.
func Info(in manifest.Info) *pluginv1.InfoResponse {
	return &pluginv1.InfoResponse{
		Name: in.Name, Version: in.Version, SdkVersion: in.SDKVersion, Description: in.Description, DocsUrl: in.DocsURL,
		Services: Versions(in.Services), Features: in.Features, Lifetime: lifetimes[in.Lifetime],
		HandleVersions: in.HandleVersions,
		Needs: &pluginv1.Privileges{
			Capabilities: in.Needs.Capabilities, HostNetwork: in.Needs.HostNetwork,
			WritablePaths: in.Needs.WritablePaths, Root: in.Needs.Root,
		},
	}
}

// FromInfo is the inverse of Info. A lifetime that is not known is the shortest.
func FromInfo(in *pluginv1.InfoResponse) manifest.Info {
	out := manifest.Info{
		Name: in.GetName(), Version: in.GetVersion(), SDKVersion: in.GetSdkVersion(), Description: in.GetDescription(),
		DocsURL: in.GetDocsUrl(), Services: FromVersions(in.GetServices()), Features: in.GetFeatures(),
		HandleVersions: in.GetHandleVersions(),
		Needs: manifest.Needs{
			Capabilities: in.GetNeeds().GetCapabilities(), HostNetwork: in.GetNeeds().GetHostNetwork(),
			WritablePaths: in.GetNeeds().GetWritablePaths(), Root: in.GetNeeds().GetRoot(),
		},
	}
	for l, p := range lifetimes {
		if p == in.GetLifetime() {
			out.Lifetime = l
		}
	}
	return out
}

var states = map[manifest.State]pluginv1.HealthResponse_State{
	manifest.OK:       pluginv1.HealthResponse_STATE_OK,
	manifest.Degraded: pluginv1.HealthResponse_STATE_DEGRADED,
	manifest.Failed:   pluginv1.HealthResponse_STATE_FAILED,
}

// Health as it travels.
func Health(in manifest.Health) *pluginv1.HealthResponse {
	return &pluginv1.HealthResponse{State: states[in.State], Message: valid(in.Message), LiveObjects: in.LiveObjects}
}

// FromHealth is the inverse of Health. A state that is not known is no good one.
func FromHealth(in *pluginv1.HealthResponse) manifest.Health {
	out := manifest.Health{State: manifest.Failed, Message: in.GetMessage(), LiveObjects: in.GetLiveObjects()}
	for s, p := range states {
		if p == in.GetState() {
			out.State = s
		}
	}
	return out
}
