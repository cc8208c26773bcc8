// One ribbon a strand: 2 vertices a point, widened towards the camera.
uniform sampler2D points;   // (point, strand): xyz, w: openness in [0,1] (0 deep in the hair)
uniform vec3 ribbon;        // number of points, width, taper
uniform vec2 follow;        // heights between which hair begins to follow the head
out vec3 v_position;
out vec3 v_tangent;
out vec3 v_outward;
out vec3 v_info;            // along [0,1], openness, strand's random
vec3 at(int k, int strand) {
    vec3 p = texelFetch(points, ivec2(k, strand), 0).xyz;
    return pose(p, smoothstep(follow.x, follow.y, p.y));
}
void main() {
    int k = gl_VertexID / 2, count = int(ribbon.x), strand = gl_InstanceID;
    float side = (gl_VertexID % 2 == 0) ? -1.0 : 1.0, along = float(k) / float(count - 1);
    vec3 p = at(k, strand);
    v_tangent = normalize(at(min(k + 1, count - 1), strand) - at(max(k - 1, 0), strand) + vec3(0.0, -1e-5, 0.0));
    vec3 view = normalize(camera.xyz - p);
    float random = hash(vec3(float(strand) * 0.37, 1.0, 2.0));
    float width = ribbon.y * (0.6 + 0.8 * random) * mix(1.0, ribbon.z, along * along);
    vec3 across = cross(v_tangent, view);
    v_position = p + across / max(length(across), 0.2) * side * width * 0.5;
    v_outward = normalize(p - pose(vec3(0.0, 7.35, 0.35), 1.0));
    v_info = vec3(along, texelFetch(points, ivec2(k, strand), 0).w, random);
    gl_Position = view_projection * vec4(v_position, 1.0);
}
