in vec3 v_position;
in vec3 v_normal;
in vec3 v_rest;
out vec4 color;
uniform vec3 centers[2];    // posed; 0: the subject's left eye
uniform vec3 gaze;          // unit, world
uniform vec3 gaze_up;
uniform vec3 iris;
uniform float redness;
void main() {
    vec3 center = v_rest.x > 0.0 ? centers[0] : centers[1];
    vec3 n = normalize(v_position - center);
    vec3 side = normalize(cross(gaze_up, gaze)), up = cross(gaze, side);
    vec2 at = vec2(dot(n, side), dot(n, up));
    float radius = dot(n, gaze) > 0.0 ? length(at) : 2.0;
    float around = atan(at.y, at.x);
    float veins = noise(vec3(at * 14.0, 2.0));
    vec3 white = mix(vec3(0.78, 0.75, 0.72), vec3(0.75, 0.52, 0.47), clamp(radius - 0.55 + 0.25 * redness * veins, 0.0, 0.5));
    float rays = 0.6 + 0.8 * noise(vec3(around * 7.0, radius * 6.0, 4.0));
    vec3 colored = iris * rays * mix(1.5, 0.55, smoothstep(0.16, 0.42, radius));
    colored = mix(vec3(0.006), colored, smoothstep(0.145, 0.175, radius));
    colored *= mix(1.0, 0.25, smoothstep(0.36, 0.44, radius));
    vec3 albedo = mix(colored, white, smoothstep(0.41, 0.46, radius));
    vec3 view = normalize(camera.xyz - v_position);
    float shadow = 0.35 + 0.65 * lit(v_position, n);
    float lid = 1.0 - 0.55 * smoothstep(0.12, 0.62, n.y);    // the upper lid's shade
    float corner = 1.0 - 0.45 * smoothstep(0.45, 0.95, abs(dot(n, side)));
    vec3 light = key_color.rgb * clamp(0.35 + 0.55 * dot(n, key_dir.xyz), 0.0, 1.0) * shadow + 0.85 * ambient(n);
    vec3 cornea = normalize(mix(n, gaze, 0.35));
    vec3 half_way = normalize(view + key_dir.xyz);
    float spark = smoothstep(0.972, 0.985, dot(normalize(n + 0.15 * gaze_up), normalize(half_way + 0.25 * gaze_up)));
    float glint = pow(max(dot(cornea, half_way), 0.0), 240.0) * 1.2;
    float window_ = smoothstep(0.93, 0.97, dot(n, normalize(gaze + 0.30 * up - 0.22 * side))) * step(radius, 0.5);
    vec3 shine = key_color.rgb * (0.8 * spark + glint) + sky_color.rgb * (0.22 * window_ + 0.03);
    color = vec4(to_screen(albedo * light * lid * corner + shine), 1.0);
}
